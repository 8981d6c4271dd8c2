"""`python -m subspan.demo`: one representation of handwritten digits, two implementations of its loss."""
