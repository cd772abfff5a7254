"""The command `catalyzer`, also as `python -m catalyzer`."""

import signal


def main() -> None:
    """Run the command; see `catalyzer.commands.cli.main`."""
    # The command itself has a sentence for Ctrl-C. While it is still being imported there is nothing to lose, nor to say.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from catalyzer.commands.cli import main as command

    command()


if __name__ == "__main__":
    main()
