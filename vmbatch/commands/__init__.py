"""Subcommands of vmbatch, a file each."""
