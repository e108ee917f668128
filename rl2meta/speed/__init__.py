"""What ``rl2meta benchmark`` measures, and how: a library that prints nothing."""
