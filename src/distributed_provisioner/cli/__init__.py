"""The commands: `jupyter ssh-spec install`, `list` and `remove`."""
