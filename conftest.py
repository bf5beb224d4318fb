pytest_plugins = [
    "conftest_plugins.options",
    "conftest_plugins.results",
    "conftest_plugins.progress",
    "conftest_plugins.pipelines",
    "conftest_plugins.quality",
    "conftest_plugins.verdicts",
    "conftest_plugins.estimates",
    "conftest_plugins.against",
]
