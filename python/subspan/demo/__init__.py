"""`python -m subspan.demo`: five studies of handwritten digits, each against the code in use today."""
