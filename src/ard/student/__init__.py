"""The student: the teacher's network with a history, how it samples, and its folder."""
