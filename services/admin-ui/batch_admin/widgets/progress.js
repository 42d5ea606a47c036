export default {
  template: `
    <div class="bar" role="img" :aria-label="text">
      <div class="ok" :style="{ width: share(completed) }"></div>
      <div class="no" :style="{ width: share(failed) }"></div>
    </div>`,
  props: { completed: Number, failed: Number, total: Number },
  computed: {
    text() { return `${(this.completed + this.failed).toLocaleString()} of ${this.total.toLocaleString()} done, ${this.failed.toLocaleString()} failed`; },
  },
  methods: { share(part) { return (this.total ? (100 * part) / this.total : 0) + "%"; } },
};
