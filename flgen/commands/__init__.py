"""The commands of `flgen`, one file each; `run(arguments)` does the command and returns the exit status."""
