"""A contestant that is built in a process of its own, which therefore imports this file and nothing heavier."""


def write_name(name, log, fail=False):
    """Return a turn that writes the contestant's name to a file which all of them share."""
    if fail:
        raise ValueError("no such library")

    def turn(part=""):
        with log.open("a", encoding="utf-8") as file:
            file.write(name + part)
        return {"turns so far": log.read_text(encoding="utf-8").count(name)}

    return turn
