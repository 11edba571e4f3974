"""Other programs that a run works with, each in a module that alone imports it."""
