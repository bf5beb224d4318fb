pytest_plugins = [
    "conftest_plugins.options",
    "conftest_plugins.results",
    "conftest_plugins.pipelines",
    "conftest_plugins.verdicts",
]
