"""The command as a process: signals that end it, and errors of our own making."""
