"""`seqtrain config`: which settings there are."""

import typer

from seqtrain.cli import options
from seqtrain.escaping import print

app = typer.Typer(help="List and show settings.", no_args_is_help=True)


@app.command("list")
def list_(config_dir: options.ConfigDir = None) -> None:
    """List every choice by group."""
    from seqtrain.compose import list_configs

    for group, names in list_configs(config_dir).items():
        print("configs, with --config-name:" if group == "." else f"{group}:")
        for name, comment in names:
            print(f"  {name:<24} {comment}")


@app.command()
def show(
    overrides: options.Overrides = None,
    config_name: options.ConfigName = "config",
    config_dir: options.ConfigDir = None,
) -> None:
    """Show the composed settings; null means: chosen from the data."""
    from seqtrain.compose import config_to_yaml, load_config

    config = load_config(config_name, overrides or [], config_dir=config_dir)
    print(config_to_yaml(config), end="")
