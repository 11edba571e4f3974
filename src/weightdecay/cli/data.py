"""`weightdecay data prepare` and `weightdecay data inspect`."""
