"""Floor 3: queues, batch forming, gather and scatter. Two kinds behind `interface`: python (here) and native."""
