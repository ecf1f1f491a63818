"""The `peft` command: each sub-command parses its arguments, calls the core and shows what came back."""
