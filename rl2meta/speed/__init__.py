"""What ``rl2meta benchmark`` measures, and how."""
