"""`python -m subspan.demo`: six studies of handwritten digits, each against the code in use today."""
