export default {
  template: `<time :datetime="iso" :title="exact">{{ local }}</time>`,
  props: { iso: String },
  computed: {
    exact() { return new Date(this.iso).toISOString(); },
    local() { return new Date(this.iso).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" }); },
  },
};
