"""What drift alarms are worth: our monitors, other libraries' defaults and dummies on the same seeded streams."""
