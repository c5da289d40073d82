"""`python -m herd` is the command `herd`."""

from herd.cli import entry

if __name__ == "__main__":
    entry()
