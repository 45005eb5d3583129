"""Small closed systems whose training the papers solve: programs, their runs, their tables."""
