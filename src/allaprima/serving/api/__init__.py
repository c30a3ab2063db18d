"""The HTTP API: OpenAI's images endpoints on the engine. FastAPI is imported in this folder only."""
