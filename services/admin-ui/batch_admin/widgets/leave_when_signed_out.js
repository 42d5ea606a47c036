// NiceGUI's socket is there once its page is mounted, which is right after what the page has.
export default {
  template: "<span hidden></span>",
  mounted() { setTimeout(() => window.socket.on("connect_error", this.leave)); },
  methods: {
    async leave() {
      const answer = await fetch("/signed-in").catch(() => null);
      if (answer?.status === 401) location.reload();
    },
  },
};
