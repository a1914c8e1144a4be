"""The front door that a Space runs; what it does is in app/serve.py."""

from app.serve import main

if __name__ == "__main__":
    main()
