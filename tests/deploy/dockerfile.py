"""Reads a Dockerfile: its stages and their instructions. What this project's does not use is refused, not ignored."""
import dataclasses
import json
import re
import shlex

KNOWN = {"ARG", "FROM", "WORKDIR", "COPY", "RUN", "SHELL", "LABEL", "USER", "ENV", "VOLUME", "EXPOSE", "STOPSIGNAL",
         "HEALTHCHECK", "ENTRYPOINT"}


@dataclasses.dataclass
class Instruction:
    line: int
    name: str
    text: str  # continued lines joined, comments gone, variables as they are written

    def words(self, variables):
        return [substitute(word, variables) for word in shlex.split(self.text)]

    def items(self):
        """Of the JSON form; None for the shell form."""
        return json.loads(self.text) if self.text.startswith("[") else None


@dataclasses.dataclass
class Stage:
    base: str
    name: str
    instructions: list[Instruction]

    def all(self, name):
        return [i for i in self.instructions if i.name == name]


def substitute(text, variables):
    """$NAME and ${NAME}; KeyError for one that is not set."""
    return re.sub(r"\$(?:\{(\w+)\}|(\w+))", lambda m: variables[m[1] or m[2]], text)


def parse(text):
    """Returns (the ARGs before the first FROM, stages)."""
    instructions, held, begun = [], "", 0
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("#") or (not held and not line.strip()):
            continue
        begun = begun if held else number
        held += line.rstrip()
        if held.endswith("\\"):
            held = held[:-1]
            continue
        name, _, rest = held.strip().partition(" ")
        if name not in KNOWN:
            raise ValueError(f"line {begun}: {name} is not an instruction that the tests know")
        instructions.append(Instruction(begun, name, rest.strip()))
        held = ""
    arguments, stages = {}, []
    for i in instructions:
        if i.name == "FROM":
            base, _, name = re.fullmatch(r"(\S+)( AS (\S+))?", i.text).groups()
            stages.append(Stage(base, name or str(len(stages)), []))
        elif stages:
            stages[-1].instructions.append(i)
        else:
            arguments.update([i.text.split("=", 1)])
    return arguments, stages
