"""The subcommands of ``uniformer``, a file each; what they need is imported when they run."""
