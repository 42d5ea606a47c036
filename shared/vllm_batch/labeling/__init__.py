"""What gateway, bridge and command line share about Label Studio: deliveries, projects, configs."""
