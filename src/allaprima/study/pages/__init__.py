"""The page: plain HTML, CSS and JavaScript, nothing from elsewhere."""
