"""Log analysis: web server access logs parsed into hits, counted in windows, watched for alerts."""
