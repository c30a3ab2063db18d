"""The demo page: plain HTML, CSS and JavaScript, and what it is told about the server (`settings`)."""
