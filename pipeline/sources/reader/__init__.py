"""Reading one untrusted video file in a process of its own; see __main__.py for the rules of that process."""
