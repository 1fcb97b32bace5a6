"""The trajectory store: made once by the teacher, read by every student."""
