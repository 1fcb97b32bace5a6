"""What everything else stands on: types, errors, files, configurations, devices and processes."""
