"""``python -m rl2meta`` is the ``rl2meta`` command."""

from rl2meta.cli import main

if __name__ == "__main__":
    main()
