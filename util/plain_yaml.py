"""YAML files of plain values: nothing in them is run, and what a few lines could blow up to is refused."""

from pathlib import Path

import yaml

from util.errors import UserError, quote


class _Unclear(yaml.YAMLError):
    """YAML that is none for settings."""


class _Loader(yaml.SafeLoader):
    """YAML of plain values: nothing in it is run, no key stands twice, and no value refers to another place.

    Of references a few lines can stand for more values than any memory holds.
    """

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise _Unclear(f'line {event.start_mark.line + 1}: *{event.anchor} refers to another place; write the '
                           'values out')
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        marks = {}
        for key, _ in node.value:
            here = key.start_mark
            if isinstance(key, yaml.ScalarNode) and (first := marks.setdefault((key.tag, key.value), here)) is not here:
                raise _Unclear(f'line {here.line + 1}: {quote(key.value)} stands there twice, first in line '
                               f'{first.line + 1}; keep one')
        return super().construct_mapping(node, deep)


def read_map(path: str | Path, what: str, remedy: str) -> dict:
    """A YAML file whose content is a map of `what`, in the order of the file.

    Raises UserError for a file that is missing, none of YAML, or something else than a map; `remedy` is what to do
    where it cannot be read.
    """
    try:
        content = yaml.load(Path(path).read_text(), _Loader)
    except OSError as error:
        raise UserError(f'{path}: cannot be read ({error.strerror}); {remedy}') from error
    except _Unclear as error:
        raise UserError(f'{path}: {error}') from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:      # of ValueError: no UTF-8, no such date
        raise UserError(f'{path}: not YAML ({" ".join(str(error).split())}); correct it') from error
    if not isinstance(content, dict):
        raise UserError(f'{path}: not a map of {what}')
    return content
