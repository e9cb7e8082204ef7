"""Ask a Skewless endpoint for predictions. Needs httpx and nothing else.

from skewless_client import Client

with Client("http://127.0.0.1:8000") as client:
    answer = client.predict("late_arrival", [{"origin": "JFK", "dest": "LAX", ...}])
    answer.predictions[0].score
"""

from skewless_client.answers import Answer, ClientError, Prediction, Refused, ServerFailed, TimedOut, Unavailable
from skewless_client.client import AsyncClient, Client
from skewless_client.retries import Retries

__all__ = [
    "Answer",
    "AsyncClient",
    "Client",
    "ClientError",
    "Prediction",
    "Refused",
    "Retries",
    "ServerFailed",
    "TimedOut",
    "Unavailable",
]
