"""How frames are fetched for weeks: open, read, notice silence, ask why, open again. `Camera` is the door to it."""
