"""What a refusal is."""


def one_line(text, cause):
    """Whether a message is one line that names the cause."""
    assert text.strip() and "\n" not in text.strip() and "Traceback" not in text, text
    assert cause in text, f"{cause!r} is not named in: {text}"
