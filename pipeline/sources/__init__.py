"""Where frames come from: files, read by a process of their own, and cameras."""
