"""The tools whose configurations are translated, a file a tool."""
