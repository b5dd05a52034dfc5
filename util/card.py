"""The model card of a run: model_card.md beside its checkpoints."""

from pathlib import Path

from util.files import write_text
from util.options import is_recipe
from util.results import Result

TEMPLATE = """# Model card: {experiment}, {benchmark}

| | |
|---|---|
| model | MAMP ({protocol}), method {method}, input stream {stream}, {joints} joints ({layout}), {frames} frames |
| pre-training | {pretraining} |
| data | {benchmark}: {train_clips} training, {test_clips} test clips, {classes} classes, bodies per clip: {bodies} |
| result, last epoch | {last} |
| result, best epoch (chosen on the test split, so optimistic) | {best} |
| training loss, last epoch | {train_loss} |
| seed | {seed}; one run does not show how much seeds differ |
| trained in | {minutes} minutes on {processes} × {machine}, {precision} |
| code | {code_version} |
| command | {command} |

Recipe: {recipe}.

Classes: {class_names}.

Intended use: research on skeleton-based action recognition. A classifier always predicts one of its classes, also for
other actions. Input must have the same joints as the training data ({unit}); accuracy on other cameras, sensors and
people was not measured. The licence of the data applies to the use of these weights (that of NTU RGB+D, PKU-MMD or
Northwestern-UCLA allows research only); the code is under the MIT licence.
"""


def write_model_card(folder: str | Path, result: Result) -> None:
    """Write model_card.md into the folder of a finished run."""
    def scores(values: dict | None) -> str:
        return 'not measured' if not values else (f'top-1 {values["top1"]:.2f} %, top-5 {values["top5"]:.2f} % of '
                                                  f'{values["samples"]:,} test clips (epoch {values["epoch"]})')
    config = result.config
    fields = result.to_dict() | {
        'experiment': result.experiment.name, 'joints': config['num_joints'], 'frames': config['num_frames'],
        'unit': '2D keypoints' if config.get('keypoints') == '2d' else 'in metres', 'last': scores(result.last),
        'best': scores(result.best), 'minutes': f'{(result.wall_seconds or 0) / 60:.1f}',
        'pretraining': ', '.join(f'{name} {value}' for name, value in (result.pretraining or {}).items()) or 'none',
        'recipe': ', '.join(f'{name} {value}' for name, value in config.items()
                            if is_recipe(name) and value is not None),
        'class_names': ', '.join(result.class_names or []) or 'not named'}
    text = TEMPLATE.format_map({name: '–' if value is None else str(value).replace('|', '\\|')
                                for name, value in fields.items()})
    write_text(Path(folder) / 'model_card.md', text)
