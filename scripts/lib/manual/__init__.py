"""What is generated from the program itself: man pages, and the JSON Schema of its configuration."""
