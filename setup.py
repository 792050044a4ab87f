"""What setup.cfg cannot say: configs/ stays at the top level and is installed as robustjax.configs."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["robustjax", "robustjax.*"]), "robustjax.configs"],
    package_dir={"robustjax.configs": "configs"},
)
