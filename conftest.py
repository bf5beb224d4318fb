from optsd.pytest_plugin import PLUGINS

pytest_plugins = [f"conftest_plugins.{name}" for name in PLUGINS]
