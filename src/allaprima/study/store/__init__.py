"""Where votes are kept: SQLite beside the pictures, or Postgres by URL. The only place that knows SQLAlchemy."""
