"""Record templates, and the recorder that checks what it is told to remember."""
