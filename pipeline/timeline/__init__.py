"""What happened when: events beside the state of a stream, who notices them, and the files they are written to."""
