"""From scores to statistics, tables and figures: functions of files, no models."""
