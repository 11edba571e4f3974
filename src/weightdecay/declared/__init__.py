"""Plain dataclasses as a schema: fields that say what they may hold, and tables read as them, all faults at once."""
