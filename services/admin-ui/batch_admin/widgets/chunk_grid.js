const COLORS = { r: "#9aa7b8", l: "#2f7fd6", c: "#2c9151", f: "#d98b1f", x: "#b5433f" };
const NAMES = { r: "ready", l: "leased", c: "completed", f: "completed with failures", x: "closed" };

export default {
  template: `
    <div style="width:100%">
      <canvas ref="canvas" role="img" :aria-label="summary" :title="hovered" @mousemove="hover" style="width:100%;display:block"></canvas>
      <div class="chunk-legend">
        <span v-for="(name, key) in names" :key="key"><i :style="{background: colors[key]}"></i>{{ counts[key] || 0 }} {{ name }}</span>
      </div>
    </div>`,
  props: { states: String },
  data() { return { hovered: "", counts: {}, names: NAMES, colors: COLORS, summary: "" }; },
  mounted() {
    this.cells = Array.from(this.states);
    this.observer = new ResizeObserver(() => this.draw());
    this.observer.observe(this.$el);
  },
  unmounted() { this.observer.disconnect(); },
  methods: {
    change(changes) {
      for (const [index, state] of changes) this.cells[index] = state;
      this.draw();
    },
    reset(states) {
      this.cells = Array.from(states);
      this.draw();
    },
    draw() {
      const canvas = this.$refs.canvas, width = this.$el.clientWidth, ratio = window.devicePixelRatio || 1;
      if (!width) return;
      const count = this.cells.length;
      this.size = count > 4000 ? 6 : count > 800 ? 9 : 14;
      this.columns = Math.max(1, Math.floor(width / this.size));
      const height = Math.ceil(count / this.columns) * this.size;
      canvas.width = width * ratio; canvas.height = height * ratio; canvas.style.height = height + "px";
      const context = canvas.getContext("2d");
      context.scale(ratio, ratio);
      const counts = {};
      this.cells.forEach((state, index) => {
        counts[state] = (counts[state] || 0) + 1;
        context.fillStyle = COLORS[state];
        context.fillRect((index % this.columns) * this.size, Math.floor(index / this.columns) * this.size, this.size - 1.5, this.size - 1.5);
      });
      this.counts = counts;
      this.summary = count + " chunks: " + Object.entries(counts).map(([state, n]) => n + " " + NAMES[state]).join(", ");
    },
    hover(event) {
      const index = Math.floor(event.offsetY / this.size) * this.columns + Math.floor(event.offsetX / this.size);
      this.hovered = index < this.cells.length ? "chunk " + index + ": " + NAMES[this.cells[index]] : "";
    },
  },
};
