"""The formats in which servers, proxies and load balancers write their access logs.

``fields`` says what a field's text means, ``text``, ``tabbed`` and ``jsons`` are the formats that are known,
``template`` compiles a ``log_format`` of nginx or a ``LogFormat`` of Apache, ``detection`` finds the format
of a line.
"""
