"""`python -m subspan.demo`: three studies of handwritten digits, each against the code in use today."""
