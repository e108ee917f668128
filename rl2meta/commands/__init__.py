"""What each ``rl2meta`` command does; with ``rl2meta.cli`` the one place that names agents and families."""
